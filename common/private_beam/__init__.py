"""The parts of Beam that Beam does not promise to keep, in the only two modules that use them."""
