"""Files: read in ranges, written by bundle, committed by run, on this machine or in a bucket."""
