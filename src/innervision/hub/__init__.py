"""Runs on the Hugging Face Hub: fetched, published, and described by a card."""
