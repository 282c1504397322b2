"""The bottleneck zoo: workloads with one planted cause each, which inferscope has to name first."""
