"""Fill a template of launch/gke: `python3 launch/fill.py TEMPLATE NAME=VALUE ... -- ARGUMENT ...` prints it.

A place is ${NAME:KIND} or ${NAME:KIND=DEFAULT}. Kinds: `name`, a DNS label; `key`, the value of a Kubernetes
label; `int`; `text`, which becomes a quoted string; `arguments`, what stands behind the --, a list of quoted
strings; `claim`, a volume claim by its name, or "" for a folder that goes with the pod. A value that is
missing, unknown or not of its kind is refused by its name, with status 2.
"""

import json
import re
import sys

PLACE = re.compile(r"\$\{(?P<name>\w+):(?P<kind>name|key|int|text|arguments|claim)(?:=(?P<default>[^}]*))?\}")
KINDS = {
  "name": (r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "small letters, digits and -, a letter first, at most 40"),
  "key": (r"[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?", "letters, digits and _ . / -"),
  "int": (r"[0-9]{1,6}", "a number"),
}


def fill(template: str, values: dict[str, str], arguments: list[str]) -> str:
  """Return a template with its places filled.

  >>> fill('a: "${name:name}"\\nb: ${n:int=2}\\nc: ${command:arguments}', {"name": "x"}, ["--a=b c"])
  'a: "x"\\nb: 2\\nc: ["--a=b c"]'
  """
  places = list(PLACE.finditer(template))
  known = {place["name"] for place in places if place["kind"] != "arguments"}
  missing = {place["name"] for place in places if place["default"] is None} & known - values.keys()
  if missing:
    raise SystemExit(f"missing: {', '.join(f'--{name}' for name in sorted(missing))}")
  if unknown := values.keys() - known:
    raise SystemExit(f"--{min(unknown)}: expected one of: {', '.join(f'--{name}' for name in sorted(known))}")

  def value(place: re.Match[str]) -> str:
    name, kind = place["name"], place["kind"]
    if kind == "arguments":
      return json.dumps(arguments)
    given = values.get(name, place["default"])
    if kind == "text":
      return json.dumps(given)
    if kind == "claim" and not given:
      return "emptyDir: {}"
    pattern, expected = KINDS["name" if kind == "claim" else kind]
    if not re.fullmatch(pattern, given):
      raise SystemExit(f"--{name} = {given!r}: expected {expected}")
    return f'persistentVolumeClaim: {{claimName: "{given}"}}' if kind == "claim" else given

  return PLACE.sub(value, template)


def main(argv: list[str]) -> None:
  """Print the filled template."""
  path, *rest = argv
  split = rest.index("--") if "--" in rest else len(rest)
  values = dict(argument.split("=", 1) for argument in rest[:split])
  try:
    with open(path) as file:
      print(fill(file.read(), values, rest[split + 1 :]), end="")
  except SystemExit as refused:
    print(f"{path}: {refused}", file=sys.stderr)
    raise SystemExit(2) from None


if __name__ == "__main__":
  main(sys.argv[1:])
