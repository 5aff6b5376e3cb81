"""What Cairn is given and what it leaves: collections and points."""
import json
import os
import re

HERE = os.path.dirname(os.path.realpath(__file__))
BUILD = os.path.realpath(os.environ.get("CAIRN_BUILD") or
                         os.path.join(HERE, "..", "..", "build"))
CAIRN = os.path.join(BUILD, "bin", "cairn")


def lua(text):
    return "\"" + re.sub(r"[\\\"\n]", lambda m: "\\%d" % ord(m.group()),
                         text) + "\""


def write_collection(path, collection, machines, directories):
    lines = ["return require \"cairn\".collection {",
             "  CollectionId = %s, ElementName = \"random\"," % lua(collection)]
    if directories:
        lines.append("  source_directories = { %s }," %
                     ", ".join(map(lua, directories)))
    lines.append("  machines = {")
    for machine, disks, config in machines:
        lines.append("    { VirtualMachineId = %s," % lua(machine))
        lines.append("      config = { %s }," % ", ".join(map(lua, config)))
        lines.append("      disks = {")
        for name, disk, fmt, tracker in disks:
            lines.append("        { id = %s, path = %s, format = %s%s }," % (
                lua(name), lua(disk), lua(fmt),
                ", tracker = " + lua(tracker) if tracker else ""))
        lines.append("      } },")
    lines.append("  } }\n")
    with open(path, "w") as f:
        f.write("\n".join(lines))


class Point:
    """A published point: its manifest, and what was exported."""

    def __init__(self, directory, ident, shadows, config):
        self.id, self.directory = ident, os.path.join(directory, ident)
        self.shadows, self.config = shadows, config
        self.read()

    def read(self):
        with open(os.path.join(self.directory, "manifest.json")) as f:
            self.manifest = json.load(f)
        self.disks = {(f["VirtualMachineId"], f["disk"]): f
                      for f in self.manifest["files"]
                      if f["role"] in ("disk", "log")}

    def file(self, f):
        return os.path.join(self.directory, f["path"])
