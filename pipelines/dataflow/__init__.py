"""Jobs of Dataflow: started, found, followed and explained."""
