"""Device meshes, the sharding of arrays over them, and runs on several hosts."""
