#!/bin/sh
# Writes the stubs of proto/ into router_ml/v1/. They are committed, never edited.
#
# Generated code refuses libraries older than its generator, so the generator
# is the oldest that serves protobuf 7: the version in pyproject's extra `dev`.
# Raising it raises the lower bounds of the base dependencies with it.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
"$python" -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. router_ml/v1/router.proto
"$python" -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. router_ml/v1/log.proto
