"""The command lines that tutorials name, as configurations of this engine.

One table (:mod:`flags`) says of every flag of those scripts what it becomes here, or why it is
refused; :mod:`dialects` holds each script's defaults and tells from the flags whose script is
meant; :mod:`translate` makes a configuration out of a command line.
"""
