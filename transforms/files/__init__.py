"""Read files in ranges, write them per bundle, and commit them per run, locally or in a bucket."""
