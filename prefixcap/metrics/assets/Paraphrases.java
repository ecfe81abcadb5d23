import java.io.BufferedOutputStream;
import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.Arrays;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.zip.Deflater;
import java.util.zip.GZIPInputStream;
import java.util.zip.GZIPOutputStream;

/**
 * The pairs of METEOR's table of paraphrases of which a phrase stands in a text.
 *
 * <p>Reads texts from the standard input, one a line. The arguments are the table, in which three lines are a pair (a
 * probability and two phrases), and the file to write; a name that ends in .gz is of a compressed file. Pairs with
 * anything but lower-case letters of English, digits and spaces are kept, whatever the texts are.
 *
 * <p>Compiled by: javac --release 8 Paraphrases.java
 */
public final class Paraphrases {
    private static final int LONGEST = 7; // words of the table's longest phrase
    private static final long SEED = 0xcbf29ce484222325L; // FNV-1a
    private static final long FACTOR = 0x100000001b3L;

    /** Hashes of phrases. Two phrases that share one would only keep a pair more. */
    private long[] slots = new long[1 << 16];
    private int size;

    /** A bit for some bits of a hash, few enough for the processor's own cache: most phrases are in no text. */
    private final long[] bits = new long[1 << 17];

    public static void main(String[] arguments) throws Exception {
        select(readAll(System.in), arguments[0], arguments[1]);
    }

    /** Writes to the file {@code kept} the pairs of a table of which a phrase stands in one of the texts. */
    static void select(byte[] texts, String table, String kept) throws Exception {
        Paraphrases phrases = new Paraphrases();
        phrases.addPhrasesOf(texts);
        ExecutorService ahead = Executors.newSingleThreadExecutor();
        try (InputStream input = opened(table); OutputStream output = created(kept)) {
            phrases.select(input, output, ahead);
        } finally {
            ahead.shutdownNow();
        }
    }

    private void addPhrasesOf(byte[] texts) {
        boolean isBetween = true;
        for (int start = 0; start < texts.length; start++) {
            boolean wasBetween = isBetween;
            isBetween = texts[start] == ' ' || texts[start] == '\n';
            if (wasBetween && !isBetween) {
                addPhrasesFrom(texts, start);
            }
        }
    }

    private void addPhrasesFrom(byte[] texts, int start) {
        long hash = SEED;
        int words = 0;
        for (int end = start; words < LONGEST; end++) {
            byte next = end < texts.length ? texts[end] : (byte) '\n';
            if (next == ' ' || next == '\n') {
                add(hash);
                words++;
                if (next == '\n') {
                    return;
                }
            }
            hash = (hash ^ next) * FACTOR;
        }
    }

    /** Writes the pairs to keep. A thread decompresses a block of the table ahead of the one that is searched. */
    private void select(InputStream table, OutputStream kept, ExecutorService ahead) throws Exception {
        byte[] pair = new byte[1 << 16];
        int length = 0;
        int line = 0;
        long hash = SEED;
        boolean keep = false;
        Future<byte[]> following = ahead.submit(() -> block(table));
        for (byte[] block = following.get(); block.length > 0; block = following.get()) {
            following = ahead.submit(() -> block(table));
            for (byte next : block) {
                if (length == pair.length) {
                    pair = Arrays.copyOf(pair, 2 * length);
                }
                pair[length++] = next;
                if (next != '\n') {
                    hash = (hash ^ next) * FACTOR;
                    keep |= line > 0 && !(next >= 'a' && next <= 'z' || next >= '0' && next <= '9' || next == ' ');
                    continue;
                }
                keep |= line > 0 && contains(hash);
                hash = SEED;
                line++;
                if (line == 3) {
                    if (keep) {
                        kept.write(pair, 0, length);
                    }
                    length = 0;
                    line = 0;
                    keep = false;
                }
            }
        }
        if (length != 0) {
            throw new EOFException("the table of paraphrases is cut short");
        }
    }

    private void add(long hash) {
        bits[(int) (hash >>> 47)] |= 1L << hash;
        if (2 * size >= slots.length) {
            long[] old = slots;
            slots = new long[2 * old.length];
            size = 0;
            for (long each : old) {
                if (each != 0) {
                    add(each);
                }
            }
        }
        int slot = slotOf(hash);
        if (slots[slot] == 0) {
            slots[slot] = hash;
            size++;
        }
    }

    private boolean contains(long hash) {
        return (bits[(int) (hash >>> 47)] >>> hash & 1) != 0 && slots[slotOf(hash)] == hash;
    }

    /** Where a hash is, or the empty slot where it belongs. */
    private int slotOf(long hash) {
        int slot = (int) (hash ^ hash >>> 32) & slots.length - 1;
        while (slots[slot] != 0 && slots[slot] != hash) {
            slot = slot + 1 & slots.length - 1;
        }
        return slot;
    }

    private static byte[] block(InputStream table) throws IOException {
        byte[] content = new byte[1 << 18];
        return Arrays.copyOf(content, Math.max(0, table.read(content)));
    }

    private static byte[] readAll(InputStream stream) throws IOException {
        ByteArrayOutputStream content = new ByteArrayOutputStream();
        byte[] buffer = new byte[1 << 16];
        for (int read = stream.read(buffer); read >= 0; read = stream.read(buffer)) {
            content.write(buffer, 0, read);
        }
        return content.toByteArray();
    }

    private static InputStream opened(String file) throws IOException {
        InputStream stream = new FileInputStream(file);
        return file.endsWith(".gz") ? new GZIPInputStream(stream, 1 << 16) : stream;
    }

    private static OutputStream created(String file) throws IOException {
        OutputStream stream = new FileOutputStream(file);
        return file.endsWith(".gz") ? new FastGzip(stream) : new BufferedOutputStream(stream);
    }

    private static final class FastGzip extends GZIPOutputStream {
        FastGzip(OutputStream stream) throws IOException {
            super(stream, 1 << 16);
            def.setLevel(Deflater.BEST_SPEED); // the file is read once
        }
    }
}
