"""`make bench`: every method on real streams, calibrated alike, reported on what none has seen."""
