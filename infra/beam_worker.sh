#!/usr/bin/env bash
# Starts one Python worker of Beam, as Flink's task managers and Spark's executors ask for it by
#   --environment_type=PROCESS --environment_config='{"command": "/where/it/lies/infra/beam_worker.sh"}'
# BEAM_PYTHON, which "env" in the configuration may set, is a Python with sightline installed. Nothing is staged: the
# same sightline has to be installed on every machine of the cluster.
exec "${BEAM_PYTHON:-python3}" -m pipeline.backfill.beam_worker "$@"
