process VIRNUCPRO_PREDICT {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${ workflow.containerEngine == 'singularity' ? 'docker://virnucpro/virnucpro:0.1.0' : 'virnucpro/virnucpro:0.1.0' }"

    input:
    tuple val(meta), path(reads)

    output:
    tuple val(meta), path("${prefix}.sequences.tsv")      , emit: sequences
    tuple val(meta), path("${prefix}.regions.tsv")        , emit: regions
    tuple val(meta), path("${prefix}.virus.fna.gz")       , emit: virus
    tuple val(meta), path("${prefix}.report.html")        , emit: report, optional: true
    path "${prefix}.virnucpro*_mqc*"                      , emit: mqc   , optional: true
    path "versions.yml"                                   , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix   = task.ext.prefix ?: "${meta.id}"
    def input = reads instanceof List && reads.size() == 2 ? "-1 ${reads[0]} -2 ${reads[1]}" : "${reads}"
    """
    virnucpro predict ${input} --name ${prefix} --output . --threads ${task.cpus} --no-progress ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnucpro: \$(virnucpro --version | sed 's/^virnucpro //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.sequences.tsv ${prefix}.regions.tsv
    echo "" | gzip > ${prefix}.virus.fna.gz

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        virnucpro: \$(virnucpro --version | sed 's/^virnucpro //')
    END_VERSIONS
    """
}
