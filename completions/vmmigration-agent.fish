# fish completion of vmmigration-agent; a package installs it under this name in vendor_completions.d.

for program in vmmigration-agent vmmigration-agent.py
    complete -c $program -f
    complete -c $program -l config-dir -xa '(__fish_complete_directories)' -d 'Where the lists and the key are'
    complete -c $program -l state-dir -xa '(__fish_complete_directories)' -d 'Where it keeps its journal'
    complete -c $program -l listen -x -d 'The address to serve'
    complete -c $program -l jobs -x -d 'How many migrations to take part in at once'
    complete -c $program -l insecure -d 'No key: rely on the IP lists alone'
    complete -c $program -s v -l verbose -d 'Log more'
    complete -c $program -l version -d 'Print the version'
    complete -c $program -s h -l help -d 'Print a summary'
end
