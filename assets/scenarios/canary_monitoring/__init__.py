"""Scenario 4: canary monitoring, by column pruning, a cube per minute and a statistical alert."""
