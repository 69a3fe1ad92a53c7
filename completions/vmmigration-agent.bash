# bash completion of vmmigration-agent, and of vmmigration-agent.py in a checkout. A package installs it as
# /usr/share/bash-completion/completions/vmmigration-agent.

_vmmigration_agent() {
    local option=$3 value=$2
    # readline cuts --option=value in three.
    [[ $value == "=" ]] && option=${COMP_WORDS[COMP_CWORD - 1]} value=
    [[ $option == "=" ]] && option=${COMP_WORDS[COMP_CWORD - 2]}
    case $option in
        --config-dir | --state-dir)
            mapfile -t COMPREPLY < <(compgen -d -- "$value")
            compopt -o filenames 2>/dev/null ;;
        --listen | --jobs) COMPREPLY=() ;;
        *)
            mapfile -t COMPREPLY < <(compgen -W "--config-dir --state-dir --listen --jobs --insecure --verbose --version
                --help -v -h" -- "$value") ;;
    esac
}

complete -F _vmmigration_agent vmmigration-agent vmmigration-agent.py
