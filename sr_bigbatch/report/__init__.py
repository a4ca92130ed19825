"""What a run says about itself: records and pictures."""
