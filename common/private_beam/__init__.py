"""The only two modules that use private names of Beam, which any release of Beam may change."""
