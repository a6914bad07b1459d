"""A long run of a stream with kills, faulty messages and an outage of a sink."""
