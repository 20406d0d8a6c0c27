"""How networks are run: the loop over layers, packed buffers, fused blocks, CUDA graphs."""
