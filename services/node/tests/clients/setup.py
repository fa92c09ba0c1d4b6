"""Checks the API's document and generates two clients from what Herald says of itself: an OpenAPI client from
/openapi.json, and a gRPC client from the .proto file. Usage: setup.py ADDRESS PROTO_DIRECTORY OUTPUT_DIRECTORY"""

import json
import pathlib
import subprocess
import sys
import urllib.request

import grpc_tools
import openapi_spec_validator

address, protos, output = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])

with urllib.request.urlopen(f"http://{address}/openapi.json") as answer:
    document = json.load(answer)
openapi_spec_validator.validate(document)

# A client is for the calls; pages for people and for probes are none.
paths = {path: {method: call for method, call in calls.items() if "operationId" in call}
         for path, calls in document["paths"].items()}
document["paths"] = {path: calls for path, calls in paths.items() if calls}
(output / "openapi.json").write_text(json.dumps(document))

(output / "config.yaml").write_text("post_hooks: []\n")
generated = subprocess.run(
    [sys.executable, "-m", "openapi_python_client", "generate", "--path", output / "openapi.json", "--meta", "none",
     "--output-path", output / "herald_http", "--config", output / "config.yaml", "--fail-on-warning", "--overwrite"],
    capture_output=True, text=True)
if generated.returncode != 0:
    sys.exit(f"no OpenAPI client could be generated:\n{generated.stdout}{generated.stderr}")

included = pathlib.Path(grpc_tools.__file__).parent / "_proto"
subprocess.run(
    [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"-I{included}", f"--python_out={output}",
     f"--grpc_python_out={output}", "herald/v1/herald.proto"],
    check=True)
