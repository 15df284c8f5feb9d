"""vllm-proxy and its derivatives, such as NEAR AI."""
