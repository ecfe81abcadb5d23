package edu.cmu.meteor.aligner;

import java.util.Collection;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;

/**
 * In place of METEOR's class of this name, which looks up the synonym sets of each word anew for each pair of texts: a
 * quarter of the time of scoring. The matches are the same, in the same order.
 *
 * <p>Two words match if they share a synonym set, of their own or of their base forms, and are not the same.
 *
 * <p>Compiled by: javac --release 8 -cp meteor-1.5.jar SynonymMatcher.java
 */
public final class SynonymMatcher {
    /** Of each word that was seen, its sets in ascending order. METEOR loads one dictionary a process. */
    private static final Map<String, int[]> SETS = new ConcurrentHashMap<>();

    public static void match(int module, Alignment alignment, Stage stage, SynonymDictionary dictionary) {
        int[][] caption = sets(alignment.words1, dictionary);
        int[][] reference = sets(alignment.words2, dictionary);
        for (int i = 0; i < reference.length; i++) {
            for (int j = 0; j < caption.length; j++) {
                if (stage.words1[j] != stage.words2[i] && intersect(caption[j], reference[i])) {
                    Match match = new Match();
                    match.module = module;
                    match.prob = 1;
                    match.start = i;
                    match.length = 1;
                    match.matchStart = j;
                    match.matchLength = 1;
                    stage.matches.get(i).add(match);
                    stage.line1Coverage[j]++;
                    stage.line2Coverage[i]++;
                }
            }
        }
    }

    private static int[][] sets(Collection<String> words, SynonymDictionary dictionary) {
        return words.stream().map(word -> sets(word, dictionary)).toArray(int[][]::new);
    }

    private static int[] sets(String word, SynonymDictionary dictionary) {
        int[] known = SETS.get(word);
        if (known == null) {
            Set<Integer> sets = new HashSet<>(dictionary.getSynSets(word));
            sets.addAll(dictionary.getStemSynSets(word));
            known = sets.stream().mapToInt(Integer::intValue).sorted().toArray();
            SETS.put(word, known);
        }
        return known;
    }

    private static boolean intersect(int[] first, int[] second) {
        for (int i = 0, j = 0; i < first.length && j < second.length; ) {
            if (first[i] == second[j]) {
                return true;
            }
            if (first[i] < second[j]) {
                i++;
            } else {
                j++;
            }
        }
        return false;
    }
}
