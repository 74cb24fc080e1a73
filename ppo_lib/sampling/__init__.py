"""How the policy's next token is computed, fast: two decoders, a recorded step on a GPU, and the choice of one."""
