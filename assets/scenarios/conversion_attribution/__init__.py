"""Scenario 1: conversion and attribution, by a delta join of visits and orders."""
