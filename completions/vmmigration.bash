# bash completion of vmmigration, and of vmmigration.py in a checkout. A package installs it as
# /usr/share/bash-completion/completions/vmmigration; sourced by hand it needs nothing but bash 4.3.

# Sets words to the command line up to the cursor, and typed to what readline takes for the last one: it cuts words at
# : and = as well.
_vmmigration_words() {
    local line=${COMP_LINE:0:COMP_POINT} before index
    words=()
    for ((index = 0; index < COMP_CWORD; index++)); do
        before=${line%%"${COMP_WORDS[index]}"*}
        line=${line:${#before}+${#COMP_WORDS[index]}}
        if [[ $index -eq 0 || $before ]]; then
            words+=("${COMP_WORDS[index]}")
        else
            words[-1]+=${COMP_WORDS[index]}
        fi
    done
    typed=${line##*[[:space:]]}
    if [[ $line == [[:space:]]* ]]; then
        words+=("$typed")
    else
        words[-1]+=$line
    fi
    # A cut by itself is none of the word to come.
    [[ ${typed//[:=]} || $COMP_WORDBREAKS != *[:=]* ]] || typed=''
}

# Prints the single addresses of AgentIPAddr.txt. $1: what --config-dir says, or nothing. $2: the program.
_vmmigration_addresses() {
    local directory=$1 line
    if [[ ! $directory ]]; then
        directory=/etc/vmmigration
        [[ -d $directory ]] || directory=$(dirname "$(readlink -f "$(type -P "$2")")")
    fi
    [[ -r ${directory/#\~/$HOME}/AgentIPAddr.txt ]] || return
    while read -r line || [[ $line ]]; do
        line=${line%%[#[:space:]]*}
        [[ $line =~ ^[0-9A-Fa-f]*[.:][0-9A-Fa-f.:]+$ ]] && printf '%s\n' "$line"
    done <"${directory/#\~/$HOME}/AgentIPAddr.txt"
}

# Prints the values of option $1; fails where it has none.
_vmmigration_values() {
    case $1 in
        --transport) echo ssh tcp ;;
        --copy-storage) echo auto all inc ;;
        --on-timeout) echo abort suspend post-copy ;;
        --source-after) echo keep undefine delete ;;
        --progress) echo auto plain json none ;;
        --skip-check)
            echo checkpoints guest-agent cpu way-back migration-ports versions memory cpus disk-space virtual-size \
                storage-pool mac-addresses ssh-user nbd-flaw post-copy clock link-rate dirty-rate disk-write-rate ;;
        --config-dir | --bandwidth | --timeout | --max-downtime | --disk-map | --pool | --network-map | --rename | \
            --report) ;;
        *) return 1 ;;
    esac
}

_vmmigration() {
    local -a words given=()
    local index config='' option='' value found='' kind=words typed addresses
    _vmmigration_words
    local current=${words[-1]}
    for ((index = 1; index < ${#words[@]} - 1; index++)); do
        case ${words[index]} in
            --config-dir=*) config=${words[index]#*=} ;;
            -*)
                if _vmmigration_values "${words[index]}" >/dev/null; then
                    [[ ${words[index]} == --config-dir ]] && config=${words[index + 1]}
                    ((index++))
                fi ;;
            *) given+=("${words[index]}") ;;
        esac
    done
    value=$current
    # Where the loop has gone past the end, the last word is the value of the one before it.
    if ((index == ${#words[@]})); then
        option=${words[-2]}
    elif [[ $current == --*=* ]]; then
        option=${current%%=*} value=${current#*=}
    fi
    if [[ $option ]]; then
        found=$(_vmmigration_values "$option")
        case $option in
            --config-dir) kind=directories ;;
            --report) kind=files ;;
            --disk-map) [[ $value == *=* ]] && kind=files value=${value#*=} ;;
        esac
    elif [[ $current == -* ]]; then
        found="--config-dir --transport --copy-storage --bandwidth --timeout --on-timeout --max-downtime
            --auto-converge --post-copy --synchronous-writes --disk-map --pool --network-map --rename --flatten
            --eject-cdrom --trim --source-after --without-destination --dry-run --skip-check --json --report
            --progress --verbose --quiet --insecure --version --help -n -v -q -h"
    else
        addresses=$(_vmmigration_addresses "$config" "${words[0]}")
        case "${given[0]-}:${#given[@]}" in
            :0)
                found="check status list resume cancel repair restore-source new-key agent-key change-key $addresses" ;;
            change-key:1) found="begin finish" ;;
            agent-key:1 | repair:[23]) found=$addresses ;;
            # Users, VMs and jobs are known on the nodes alone.
            check:* | status:* | list:* | resume:* | cancel:* | repair:* | restore-source:* | new-key:*) ;;
            agent-key:* | change-key:*) ;;
            *:1) found=$(grep -Fvx -e "${given[0]}" <<<"$addresses") ;;
            *:[45]) kind=files ;;
        esac
    fi
    case $kind in
        words) mapfile -t COMPREPLY < <(compgen -W "$found" -- "$value") ;;
        files) mapfile -t COMPREPLY < <(compgen -f -- "$value") ;;
        directories) mapfile -t COMPREPLY < <(compgen -d -- "$value") ;;
    esac
    # Whole words, of which readline only wants what it takes for the last one.
    for index in "${!COMPREPLY[@]}"; do
        COMPREPLY[index]=${current%"$value"}${COMPREPLY[index]}
        COMPREPLY[index]=${COMPREPLY[index]:${#current}-${#typed}}
    done
    [[ $kind == words ]] || compopt -o filenames 2>/dev/null
}

complete -F _vmmigration vmmigration vmmigration.py
