"""What each lesson measures and draws, one file a lesson; its exercises are in `exercises`."""
