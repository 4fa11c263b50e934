"""Errors of modules outside kiwi that an experiment names, such as `gated_source.GatedSource`."""

import traceback

from kiwi.errors import InputError, exception_chain, first_line


def explain_import_failure(error: BaseException) -> InputError | None:
    """The error of a module that jsonargparse could not import, found in the chain of its exception; None for others.

    jsonargparse quotes only the text of the module's exception, in a list of all that the option could have been.
    """
    for cause in exception_chain(error):
        frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
        importer = next((frame for frame in frames if frame.f_code.co_name == "import_object"), None)
        if importer is None or not (module := importer.f_locals.get("name_module")):
            continue
        if isinstance(cause, ModuleNotFoundError) and f"{module}.".startswith(f"{cause.name}."):
            fix = f"add the folder of {cause.name} to PYTHONPATH, or correct the name"
            return InputError(f"there is no module {module}", code="missing-module", got=cause.msg, fix=fix)
        places = [(entry.filename, entry.lineno) for entry in traceback.extract_tb(cause.__traceback__)]
        places = [place for place in places[frames.index(importer) + 1 :] if not place[0].startswith("<frozen")]
        text = first_line(cause)
        if isinstance(cause, SyntaxError):
            places, text = [(str(cause.filename), cause.lineno)], cause.msg
        if places:
            file, line = places[-1]
            problem, got = f"the module {module} cannot be imported", f"{type(cause).__name__}: {text}"
            fix = f"correct line {line} of {file}"
            return InputError(problem, code="broken-module", got=got, fix=fix)
    return None
