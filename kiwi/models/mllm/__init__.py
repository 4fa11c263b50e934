"""The multimodal LLM: vision input and features, prompts, position ids, prefix cache."""
