"""What a process of ours tells of itself: metrics, traces and the form of its logs."""
