"""List and edit the captions of a datastore.

A datastore is a feature store of sentences with embeddings by a captioner's encoder. Captioners that were trained \
with retrieved captions, or with entities from them, read it: `--datastore STORE` of `caption` and `serve`.

Make one from texts with `prefixcap embed data=text`, or of a store that has images with `prefixcap datastore copy`. \
An edit is done completely or, if it is stopped, not at all.
"""

from prefixcap.commands import Command

COMMANDS = {
    command.name: command
    for command in (
        Command("list", "listing", "Look", "Say what is in a datastore, and find captions."),
        Command("add", "add", "Edit", "Add captions of text files, or of another datastore."),
        Command("remove", "remove", "Edit", "Remove captions."),
        Command("dedupe", "dedupe", "Edit", "Keep one of the captions that have the same words."),
        Command("index", "index", "Edit", "Index millions of captions, to search them faster."),
        Command("copy", "copy", "Edit", "Make a datastore of a store's captions."),
    )
}

EXAMPLES = """Captions of your own, and what a captioner makes of them:

  prefixcap embed data=text data.files=captions.txt data.reader.val_share=0 \\
      data.store=stores/mine

  prefixcap datastore add stores/mine more.txt

  prefixcap datastore list stores/mine --match horse

  prefixcap caption photo.jpg --ckpt best.ckpt --datastore stores/mine

`prefixcap datastore COMMAND --help` describes a command, with examples."""
