"""Run: jobs at work: a runner per job, workers and their lanes, the recomputation, and facts about all of them."""
