"""How the processes of a JAX program meet: by messages through the coordinator of `jax.distributed`."""
