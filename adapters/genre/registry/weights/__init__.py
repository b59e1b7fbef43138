"""Weight files, read without trusting them and without torch: safetensors, PEFT's LoRA, a base's layers."""
