"""The tuned model in the form that others run."""
