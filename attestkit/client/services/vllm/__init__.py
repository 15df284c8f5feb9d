"""vllm-proxy and its derivatives, such as NEAR AI (attested-client.md, 2.2 to 2.4)."""
