"""`make bench NAME=trainer`: our trainer against Hugging Face's Trainer, TRL, datasketch, RecBole and its own bars."""
