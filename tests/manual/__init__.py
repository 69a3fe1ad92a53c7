"""The man pages and the shells' completions, tried with the tools that read them: script/test manual."""
