"""What a run will cost, from its config alone: no data, no device, nothing compiled."""
