"""What the DAGs are made of. Nothing of this project has to be installed beside them."""
