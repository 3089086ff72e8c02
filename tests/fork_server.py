"""fairseq's command lines in processes forked from one that has imported fairseq already.

A start of ``fairseq-train`` spends six seconds on imports. This server pays them once, imports
nothing of the plugin, and forks a fresh child a command: argv, working directory, environment and
both streams are the child's own, the plugin is imported in the child alone, and what an uncaught
exception prints and returns is what Python itself would.

Protocol: a line of JSON in (program, argv, cwd, env, out), a line of JSON out (exit status).
"""

import importlib
import json
import os
import sys
import traceback

PROGRAMS = {
    name: f"fairseq_cli.{name.replace('-', '_')}" for name in ("train", "validate", "hydra-train")
}


def serve():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in PROGRAMS.values():
        importlib.import_module(module)
    loaded = [name for name in sys.modules if name.split(".")[0] == "fairseq_peft"]
    assert not loaded, f"the plugin is in the server: {loaded}"
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            run(job)
        _, status = os.waitpid(child, 0)
        replies.write(json.dumps(os.waitstatus_to_exitcode(status)) + "\n")
        replies.flush()


def run(job):
    """The child: never returns."""
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            path = os.path.join(job["out"], name)
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        sys.path[:0] = job["path"]
        sys.argv = [f"fairseq-{job['program']}", *job["argv"]]
        code = call(sys.modules[PROGRAMS[job["program"]]].cli_main)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def call(main):
    """Call ``main`` as the interpreter would: the exit status."""
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    serve()
