"""The multimodal LLM: vision input and features, prompts, positions, prefix cache."""
