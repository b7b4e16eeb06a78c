# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Open a pod's checkpoint on a laptop
#
# A run on many devices writes sharded arrays. This notebook trains on 8 devices in another process and opens the
# checkpoint here, on one: its records, one array, one layer of a stacked array, the whole model.
#
# The 8 devices are simulated on the CPU of this machine. The files they write are those of a pod of 8 chips.
#
# Time: 2 minutes on a busy machine with 2 CPU cores (40 seconds of CPU time).

# %%
import os
import pathlib
import subprocess
import sys

import jax
import treescope

from hybridlm.analysis import Run, open_model

if pathlib.Path.cwd().name == "notebooks":
    os.chdir("..")  # paths are those of the clone's top folder
SMOKE = "HYBRIDLM_SMOKE" in os.environ  # the size of the tests: seconds, and nothing is learned
RUNS = pathlib.Path("runs/notebooks-smoke" if SMOKE else "runs/notebooks")
DEVICES = 4 if SMOKE else 8

# %% [markdown]
# ## The pod
#
# `mesh.fsdp=4` splits every parameter over four devices, `mesh.data` splits the batch over the rest.

# %%
workdir = RUNS / "pod"
command = [sys.executable, "-m", "hybridlm.cli", "train", "--config", "configs/demo.py:smoke"]
command += ["--workdir", str(workdir), "--config.mesh.fsdp=4", "--config.mesh.data=-1"]
command += ["--config.model.depth=6", "--config.data.batch_size=8", "--config.sample.tokens=0"]
flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
pod = subprocess.run(
    command,
    env=os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS="cpu"),
    capture_output=True,
    text=True,
)
if pod.returncode != 0:
    raise RuntimeError(pod.stderr)
print("\n".join(pod.stdout.splitlines()[-4:]))

# %% [markdown]
# ## The laptop
#
# `Run` reads the records of the folder. It uses no device and reads no array.

# %%
run = Run(workdir)
devices = run.environment["devices"]
print(f"trained on {len(devices)} devices, {devices[0]}")
print("here:", jax.devices())
run.metrics("eval")[["step", "tokens", "loss"]]

# %% [markdown]
# The arrays of a checkpoint are listed without being read. Their names are those of the layers, however the model
# stacks them.

# %%
checkpoint = run.checkpoint()
sizes = [row for row in checkpoint.rows() if row["name"].startswith("layers.1.")]
total = sum(row["bytes"] for row in checkpoint.rows())
print(f"{len(checkpoint)} arrays, {total / 2**20:.1f} MiB with the optimizer's state; layer 1:")
for row in sizes:
    print(f"  {row['name']:32} {row['shape']!s:12} {row['bytes']:>8,} bytes")

# %% [markdown]
# One array is read by its name. A whole array is compared with its checksum; of a stacked array only the layer that
# is asked for is read, without that check.

# %%
kernel = checkpoint["layers.1.mixer.q.kernel"]
print(type(kernel).__name__, kernel.shape, kernel.dtype)
treescope.render_array(kernel, axis_labels={0: "width", 1: "heads × size"})

# %% [markdown]
# ## The whole model
#
# The model opens on one device, whatever mesh wrote it.

# %%
model = open_model(workdir)
print({leaf.sharding for leaf in jax.tree.leaves(model.params)})
print(model.logits("My fellow citizens").shape)

# %% [markdown]
# ## From a bucket
#
# Every call above takes `gs://` and `s3://` paths too, such as `Run("gs://bucket/runs/pod")`. This notebook has no
# bucket to show it on: the next cell reads the local folder again, unless the environment variable `POD_RUN` names a
# run of yours. [docs/storage.md](../docs/storage.md) says which credentials are used; the tests read from servers of
# both kinds on this machine.

# %%
elsewhere = os.environ.get("POD_RUN", str(workdir))
print(elsewhere)
print(Run(elsewhere).checkpoint()["final_norm.scale"][:4])

# %% [markdown]
# ## A model folder
#
# For a colleague without the run, a model folder holds the parameters, the settings and the tokenizer alone.

# %%
from hybridlm.runs import save_model

folder = RUNS / "pod_model"
if not folder.exists():
    save_model(model.opened, folder)
print(*sorted(path.name for path in folder.iterdir()))
size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
print(f"{size / 2**20:.1f} MiB")
