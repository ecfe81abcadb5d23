import edu.cmu.meteor.scorer.MeteorConfiguration;
import edu.cmu.meteor.scorer.MeteorScorer;
import edu.cmu.meteor.scorer.MeteorStats;
import edu.cmu.meteor.util.Constants;
import edu.cmu.meteor.util.Normalizer;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.StringTokenizer;
import java.util.concurrent.ConcurrentHashMap;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * What METEOR's own program answers to SCORE, with its English defaults and normalisation (-l en -norm), on all
 * processors: its dictionaries are read once for all threads, and each text is split into words once.
 *
 * <p>The arguments are a table of paraphrases, and a file ending in .gz to write those pairs to that the captions can
 * use. Reads the captions as METEOR may read them ({@link Paraphrases}), an empty line, and the references of each image
 * and its caption, separated by |||, one image a line, from the standard input; prints the statistics of each.
 *
 * <p>Compiled by: javac --release 8 -cp meteor-1.5.jar MeteorStatistics.java Paraphrases.java edu/cmu/meteor/aligner/SynonymMatcher.java
 */
public final class MeteorStatistics {
    private static final Pattern SEPARATOR = Pattern.compile("\\|\\|\\|");

    private final Map<String, ArrayList<String>> wordsOfTexts = new ConcurrentHashMap<>();

    public static void main(String[] arguments) throws Exception {
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        StringBuilder captions = new StringBuilder();
        for (String line = input.readLine(); !line.isEmpty(); line = input.readLine()) {
            captions.append(line).append('\n');
        }
        Paraphrases.select(captions.toString().getBytes("UTF-8"), arguments[0], arguments[1]);
        String[] options = {"-l", "en", "-norm", "-a", arguments[1]};
        MeteorScorer loaded = new MeteorScorer(new MeteorConfiguration(Meteor.createPropertiesFromArgs(options, 0)));
        ThreadLocal<MeteorScorer> scorer = ThreadLocal.withInitial(() -> new MeteorScorer(loaded));
        MeteorStatistics program = new MeteorStatistics();
        List<String> images = input.lines().collect(Collectors.toList());
        List<String> statistics = images.parallelStream()
                .map(image -> program.statistics(scorer.get(), image))
                .collect(Collectors.toList());
        System.out.println(String.join("\n", statistics));
    }

    /** Those of the reference with the highest score; of the first of several. */
    private String statistics(MeteorScorer scorer, String image) {
        String[] texts = SEPARATOR.split(image);
        ArrayList<String> caption = words(texts[texts.length - 1]);
        MeteorStats best = new MeteorStats();
        best.score = -1;
        for (int i = 0; i < texts.length - 1; i++) {
            MeteorStats each = scorer.getMeteorStats(caption, words(texts[i]));
            if (each.score > best.score) {
                best = each;
            }
        }
        return best.toString();
    }

    private ArrayList<String> words(String text) {
        return wordsOfTexts.computeIfAbsent(text.trim(), MeteorStatistics::split);
    }

    private static ArrayList<String> split(String text) {
        // The normaliser changes nothing in words of lower-case letters and digits, and is slow.
        String normal = isPlain(text) ? text : Normalizer.normalizeLine(text, Constants.LANG_EN, true).toLowerCase();
        ArrayList<String> words = new ArrayList<>();
        for (StringTokenizer tokens = new StringTokenizer(normal); tokens.hasMoreTokens(); ) {
            words.add(tokens.nextToken());
        }
        return words;
    }

    private static boolean isPlain(String text) {
        return text.chars().allMatch(each -> each >= 'a' && each <= 'z' || each >= '0' && each <= '9' || each == ' ');
    }
}
