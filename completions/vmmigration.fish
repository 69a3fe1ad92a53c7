# fish completion of vmmigration; a package installs it under this name in vendor_completions.d.

# Prints the arguments so far, without the program, options and their values. With --config-dir: its value instead.
function __vmmigration_given
    argparse config-dir -- $argv
    set -l with_value --config-dir --skip-check --transport --copy-storage --bandwidth --timeout --on-timeout \
        --max-downtime --disk-map --pool --network-map --rename --source-after --report --progress
    set -l before ''
    for word in (commandline -opc)[2..-1]
        if contains -- "$before" $with_value
            set -ql _flag_config_dir; and test "$before" = --config-dir; and echo -- $word
            set before ''
            continue
        end
        set before $word
        if set -ql _flag_config_dir
            string replace -f -r -- '^--config-dir=' '' $word
        else if not string match -q -- '-*' $word
            echo -- $word
        end
    end
end

# Whether so many arguments are given, and the first of them is one of the other words, if there are any.
function __vmmigration_at
    set -l given (__vmmigration_given)
    test (count $given) -eq $argv[1]; or return
    test (count $argv) -eq 1; or contains -- "$given[1]" $argv[2..-1]
end

# Whether so many arguments are given, of a move.
function __vmmigration_moves
    set -l given (__vmmigration_given)
    test (count $given) -eq $argv[1]; and string match -qr '[.:]' -- $given[1]
end

# Prints the single addresses of AgentIPAddr.txt.
function __vmmigration_addresses
    set -l directory (__vmmigration_given --config-dir)[-1]
    if test -z "$directory"
        set directory /etc/vmmigration
        if not test -d $directory
            set -l program (command -s (commandline -opc)[1]); or return
            set directory (dirname (realpath $program))
        end
    end
    set directory (string replace -r '^~(?=/|$)' $HOME -- $directory)
    test -r $directory/AgentIPAddr.txt; or return
    string replace -r '#.*' '' <$directory/AgentIPAddr.txt | string trim |
        string match -r '^[0-9A-Fa-f]*[.:][0-9A-Fa-f.:]+$'
end

# Prints the addresses that a VM on the first one given can move to.
function __vmmigration_destinations
    string match -v -- (__vmmigration_given)[1] (__vmmigration_addresses)
end

# Not by --wraps, which hides where the program lies.
for program in vmmigration vmmigration.py
    complete -c $program -f
    complete -c $program -n '__vmmigration_at 0' -a check -d 'Look at all agents, and at SSH and libvirt between them'
    complete -c $program -n '__vmmigration_at 0' -a status -d 'What is under way'
    complete -c $program -n '__vmmigration_at 0' -a list -d 'All jobs, and how they ended'
    complete -c $program -n '__vmmigration_at 0' -a resume -d 'Go on with a job where it is'
    complete -c $program -n '__vmmigration_at 0' -a cancel -d 'End a job and undo it'
    complete -c $program -n '__vmmigration_at 0' -a repair -d 'Find out where a VM is, finish or undo its jobs'
    complete -c $program -n '__vmmigration_at 0' -a restore-source -d 'Bring back the copy that a move has left'
    complete -c $program -n '__vmmigration_at 0' -a new-key -d 'Make the master key'
    complete -c $program -n '__vmmigration_at 0' -a agent-key -d 'Print the key of an agent'
    complete -c $program -n '__vmmigration_at 0' -a change-key -d 'Change the master key without a stop'
    complete -c $program -n '__vmmigration_at 1 change-key' -a 'begin finish'
    complete -c $program -n '__vmmigration_at 0' -a '(__vmmigration_addresses)' -d 'Source'
    complete -c $program -n '__vmmigration_moves 1' -a '(__vmmigration_destinations)' -d 'Destination'
    complete -c $program -n '__vmmigration_at 1 agent-key' -a '(__vmmigration_addresses)' -d 'Agent'
    complete -c $program -n '__vmmigration_at 2 repair' -a '(__vmmigration_addresses)' -d 'Source'
    complete -c $program -n '__vmmigration_at 3 repair' -a '(__vmmigration_addresses)' -d 'Destination'
    # Users, VMs and jobs are known on the nodes alone. Of a move, two paths follow.
    complete -c $program -n '__vmmigration_moves 4; or __vmmigration_moves 5' -F

    complete -c $program -l config-dir -xa '(__fish_complete_directories)' -d 'Where the list and the key are'
    complete -c $program -s n -l dry-run -d 'Check everything, print the plan, change nothing'
    complete -c $program -l skip-check -xa 'checkpoints guest-agent cpu way-back migration-ports versions memory cpus
        disk-space virtual-size storage-pool mac-addresses ssh-user nbd-flaw post-copy clock link-rate dirty-rate
        disk-write-rate' -d 'Go on although that check finds something'
    complete -c $program -l insecure -d 'No key: rely on the IP lists alone'
    complete -c $program -l transport -xa 'ssh tcp' -d 'How memory and disks cross'
    complete -c $program -l copy-storage -xa 'auto all inc' -d 'What of the disks is written'
    complete -c $program -l bandwidth -x -d 'Limit for each disk and for the memory, MiB/s'
    complete -c $program -l timeout -x -d 'The longest that the live migration may take, seconds'
    complete -c $program -l on-timeout -xa 'abort suspend post-copy' -d 'What happens then'
    complete -c $program -l max-downtime -x -d 'How long the guest may stand still, milliseconds'
    complete -c $program -l auto-converge -d 'Slow the guest down until the copying catches up'
    complete -c $program -l post-copy -d 'Let it go on over there before its memory is there'
    complete -c $program -l synchronous-writes -d 'Disk writes wait for the destination'
    complete -c $program -l disk-map -r -d 'Where a disk, a file or a directory goes'
    complete -c $program -l pool -x -d 'Storage pool of the destination for the images'
    complete -c $program -l network-map -x -d 'Connect interfaces to another network'
    complete -c $program -l rename -x -d 'What the VM is called over there'
    complete -c $program -l flatten -d 'Make one image of each chain of images'
    complete -c $program -l eject-cdrom -d 'Leave CD-ROM and floppy drives empty over there'
    complete -c $program -l trim -d 'Trim the file systems after the arrival'
    complete -c $program -l source-after -xa 'keep undefine delete' -d 'What becomes of the copy on the source'
    complete -c $program -l without-destination -d 'Although the destination cannot be asked'
    complete -c $program -l json -d 'The result as JSON'
    complete -c $program -l report -r -d 'A page about the run'
    complete -c $program -l progress -xa 'auto plain json none' -d 'How progress is shown'
    complete -c $program -s v -l verbose -d 'Log what is sent and received'
    complete -c $program -s q -l quiet -d 'Only the result and errors'
    complete -c $program -l version -d 'Print the version'
    complete -c $program -s h -l help -d 'Print a summary'
end
