"""A real language model on a small machine: SmolLM2-135M-Instruct and instructions that programs check. docs/smollm.md."""
