"""The code of the DAGs, which runs without Millrace being installed in Airflow."""
