"""The vllm-proxy lineage and NEAR AI: reports, sealed fields, signed answers (2.2 to 2.4)."""
