"""What is measured on held-out images while a model trains."""
