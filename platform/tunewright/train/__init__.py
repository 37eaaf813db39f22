"""Fine-tuning with DeepSpeed ZeRO. Row 5; Ray only in worker.py and launch.py."""
