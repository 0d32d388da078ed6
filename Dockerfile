# The project with all it needs; launch/image.sh builds, pushes and runs it.
#
#   docker build --build-arg=ACCELERATOR=tpu --tag=mappa_jax:tpu .
#
# ACCELERATOR is cpu, tpu or cuda (the extras of setup.py). The process is not root; TPU
# devices belong to root, so launch/gke/submit.sh and `launch/image.sh run` put root in
# its place for TPUs, and an image for xpk is built with RUN_AS=root.
#
# The sandbox of the agents' programs (docs/sandbox.md) makes namespaces inside the
# container, which Docker forbids by default. Give it
#   --security-opt=seccomp=unconfined --security-opt=apparmor=unconfined
#   --security-opt=systempaths=unconfined
# and, on Ubuntu 24.04 and later, on the host
#   sysctl kernel.apparmor_restrict_unprivileged_userns=0
# Then `python launch/doctor.py` in the container says whether all its walls stand.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm
ARG ACCELERATOR=cpu
ARG RUN_AS=mappa

RUN apt-get update \
 && apt-get install -y --no-install-recommends bubblewrap libseccomp2 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 mappa \
 && install -d -o mappa -g mappa /app /app/runs
WORKDIR /app

# What rarely changes first: the requirements are one layer, kept between builds.
COPY pyproject.toml setup.py requirements.txt README.md ./
RUN case "$ACCELERATOR" in \
      cpu) extra= ;; \
      tpu|cuda) extra="[$ACCELERATOR]" ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: expected cpu, tpu or cuda" >&2; exit 2 ;; \
    esac \
 && pip install --no-cache-dir --requirement requirements.txt ".$extra"
COPY --chown=mappa:mappa . .
RUN pip install --no-cache-dir --no-deps --editable .

# For the NVIDIA container runtime; nothing else reads them.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER ${RUN_AS}
CMD ["python", "launch/train.py", "--help"]
