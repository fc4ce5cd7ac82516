"""Averages of the parameters: how they are tracked, their decays,
and those made afterwards from snapshots."""
