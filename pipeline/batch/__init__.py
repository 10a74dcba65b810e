"""Many videos: each is done exactly once, on this machine or on a cluster, and goes on where it was stopped."""
